"Takes the noise out of agricultural images"
import os

# ONNX Runtime and MLflow report to their makers how they are used, unless they are told not to before they are imported
for _name, _value in (("ORT_DISABLE_TELEMETRY", "1"), ("MLFLOW_DISABLE_TELEMETRY", "true"), ("DO_NOT_TRACK", "1")):
    os.environ.setdefault(_name, _value)

# TensorFlow greets on standard error when Keras imports it; what really fails is raised all the same
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"
