"""What `torch.fx` lacks: free names, a call's arguments by name, live ranges of values."""
