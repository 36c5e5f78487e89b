"""What the project keeps."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    number = models.IntegerField(unique=True)
    note = models.CharField(max_length=40, default="")

    class Meta:
        app_label = "shop"


class Approval(models.Model):
    promise = models.CharField(max_length=64)
    token = models.CharField(max_length=64)

    class Meta:
        app_label = "shop"
