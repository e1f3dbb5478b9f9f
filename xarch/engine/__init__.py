"""The progressive matching engine. It knows taps, stages and objectives; it names no architecture."""
