"""The project's only app."""

from __future__ import annotations

from django.apps import AppConfig


class ShopConfig(AppConfig):
    name = "tests.acceptance.django_site.shop"
    label = "shop"
