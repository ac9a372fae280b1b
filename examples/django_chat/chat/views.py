"""The pages."""

from __future__ import annotations

from django.contrib.auth import login
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import UserCreationForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse_lazy
from django.utils.text import slugify
from django.views.generic import FormView

from .models import Message


@login_required
def rooms(request: HttpRequest) -> HttpResponse:
    room = slugify(request.GET.get("room", ""), allow_unicode=False)[:50]
    if room:
        return redirect("room", room)
    names = {"lobby", *Message.objects.values_list("room", flat=True)}
    return render(request, "rooms.html", {"rooms": sorted(names)})


@login_required
def room(request: HttpRequest, room: str) -> HttpResponse:
    return render(request, "room.html", {"room": room})


class SignUp(FormView):
    """Whoever chooses a name and a password is a member."""

    template_name = "registration/signup.html"
    form_class = UserCreationForm
    success_url = reverse_lazy("rooms")

    def form_valid(self, form: UserCreationForm) -> HttpResponse:
        login(self.request, form.save())
        return super().form_valid(form)
