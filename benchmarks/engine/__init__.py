"""OpenVINO, which serves, beside ONNX Runtime, which served before it: language models and encoders."""
