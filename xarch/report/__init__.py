"""What a run did, on one page: built from the files of a run folder alone, never from models."""
