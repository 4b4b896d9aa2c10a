"""The embedded corpus: sounds and music made with numpy, in the layouts of the real datasets."""
