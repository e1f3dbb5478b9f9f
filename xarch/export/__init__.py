"""Export of a student's graphs to ONNX files that are checked to reproduce it."""
