"""How things run fast and where they lie: compilation, CUDA graphs, memory, progress, places."""
