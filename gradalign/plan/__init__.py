"""What a recipe will cost before it starts: work counted from shapes, speeds measured here or published of a card."""
