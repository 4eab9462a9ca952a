"""Training: fine-tunes, evaluates and compresses; produces measured candidates. It knows no serving."""
