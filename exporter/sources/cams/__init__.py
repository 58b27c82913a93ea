"""Alibaba Cloud's Chat App Message Service (CAMS): keys, credentials, signature, wire format and requests."""
