"""From a student's graphs to checked ONNX files that reproduce it."""
