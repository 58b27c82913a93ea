"""Prometheus exporter for the health of WhatsApp phone numbers on Alibaba Cloud's Chat App Message Service."""

__version__ = "0.1.0"
