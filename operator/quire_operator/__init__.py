"""The control plane: watches InferenceServices, decides, applies."""
