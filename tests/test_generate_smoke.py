def test_a_prompt_becomes_a_picture(service):
    job = service.generate("a red circle on a blue background", seed=3)
    assert job["state"] == "succeeded"
