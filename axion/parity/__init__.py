"""The native engine beside transformers: is an architecture computed as its authors wrote it?"""
