"""Quality gates on evaluated figures."""
