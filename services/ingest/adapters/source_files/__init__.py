"""Where the files of a source lie, one module a protocol, behind one port; and the walls before each opening."""
