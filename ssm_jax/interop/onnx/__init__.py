"""Models as ONNX files: the graph, the file with its metadata, and the engines that run it."""
