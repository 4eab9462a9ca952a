"""Model cards: what a model is, where it comes from and how good it is, as Markdown and as HTML."""
