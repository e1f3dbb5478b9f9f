"""Plots as SVG; their colours follow the page's light or dark theme."""
