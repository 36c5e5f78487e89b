"""The rules of a step, and who carries them out."""
