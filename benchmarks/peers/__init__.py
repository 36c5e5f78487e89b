"""Other engines, doing the same steps on the same machine; each in a virtual environment of its own."""
