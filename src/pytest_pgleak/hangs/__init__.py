"""When it hangs instead of failing: locks that are waited for, and pools and servers that are full."""
