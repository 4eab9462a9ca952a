"""Plots as SVG. Their colours follow the style sheet, and each says its content in words."""
