"""What runs left behind, read and put into tables and figures, beside the paper's."""
