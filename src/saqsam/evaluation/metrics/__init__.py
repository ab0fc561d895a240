"""Metrics over records: IoU, COCO mask AP and rotated-box AP.

May import `data` and `utils`.
"""
