"""The progressive matching engine. It handles taps, stages and objectives, and is independent of any architecture."""
