"""Export of fields as ONNX graphs and as files of other programs."""
