"""Points, rays and views: sampled from a field, or read from folders of posed images."""
