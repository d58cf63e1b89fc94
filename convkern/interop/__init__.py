"""Bridges to other frameworks' formats; each module is imported only when asked for."""
