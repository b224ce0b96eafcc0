"""Classifiers: numbers in, numbers out. Knows nothing of cameras, lights or records."""

import os

# Since 1.29 ONNX Runtime tells its maker about every session, unless this is set before it is
# imported. What a factory inspects is nobody else's business.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
