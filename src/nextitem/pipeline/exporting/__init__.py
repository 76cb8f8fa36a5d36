"""Export of trained models for software that does not contain this package: ONNX, faiss, transformers, plain numpy."""
