"""Strict JSON as the routes read it."""

from app.strict_json import NotStrictJson, check_text, loads

__all__ = ["NotStrictJson", "check_text", "loads"]
