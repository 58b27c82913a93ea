"""Alibaba Cloud's Chat App Message Service (CAMS): configuration, credentials, signature, wire format, requests."""
