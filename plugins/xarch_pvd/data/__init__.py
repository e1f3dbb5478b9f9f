"""Points, rays and views: drawn from a field, or read from folders of posed pictures."""
