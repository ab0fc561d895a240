"""A web page on which models answer clicks side by side, and the server behind it.

May import everything but `report`, `verification` and `cli`. The server itself needs Starlette and uvicorn.
"""
