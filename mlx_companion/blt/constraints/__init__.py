"""Constraints on bytes: text that a model writes and that is valid whatever the model prefers."""

from mlx_companion.blt.constraints.base import Constraint
from mlx_companion.blt.constraints.regular import RegexConstraint, regex

__all__ = ["Constraint", "RegexConstraint", "regex"]
