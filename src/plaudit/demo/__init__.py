"""An embedded chat model and bundled preferences, for the demo and for use on their own."""

from plaudit.demo.embedded_model import EMBEDDED_MODEL_NAME, embedded_model_available, embedded_model_path
from plaudit.demo.preferences import load_preferences

__all__ = ["EMBEDDED_MODEL_NAME", "embedded_model_available", "embedded_model_path", "load_preferences"]
