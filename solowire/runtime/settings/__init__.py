"""All that can be set: a model for each room that takes settings, and where their values come from."""

from solowire.runtime.settings.loader import load
from solowire.runtime.settings.system_settings import Settings

__all__ = ["Settings", "load"]
