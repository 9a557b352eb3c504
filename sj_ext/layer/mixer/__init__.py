"""Token mixers that take an attention's place: one idea a file."""

__all__: list[str] = []
