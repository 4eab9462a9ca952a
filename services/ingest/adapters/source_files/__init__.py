"""Access to the files of a source, one module per protocol behind one port, with access checks before each opening."""
