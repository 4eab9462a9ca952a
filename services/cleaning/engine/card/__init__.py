"""Data cards: what a version of a data set consists of, as Markdown and as HTML. No text of a record is in them."""
