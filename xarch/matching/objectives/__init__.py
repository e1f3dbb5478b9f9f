"""Built-in objectives, one file per kind of loss; all support any dense layout."""
