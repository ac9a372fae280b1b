"""What was said."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class Message(models.Model):
    """What one member has said in a room."""

    room = models.SlugField()
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    text = models.CharField(max_length=1000)
    sent_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.author}: {self.text}"
