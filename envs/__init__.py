"""Gymnasium environments of Mobile Edge Generation."""
