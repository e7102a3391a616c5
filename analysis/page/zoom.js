// Figures seen closer: buttons, keys, Ctrl and wheel, two fingers; a larger view of its own for each.
"use strict";
(() => {
  const STEP = 1.4;
  const MOST = 12;
  const SLACK = 4;

  const setUp = (drawing) => {
    const paper = drawing.querySelector(".paper");
    const svg = paper.querySelector("svg");
    const whole = svg.viewBox.baseVal;
    const [width, height] = [whole.width, whole.height];
    const [left, top] = [whole.x, whole.y];
    let scale = 1;
    let x = left;
    let y = top;

    const button = (label, text, act) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      if (label !== text) made.setAttribute("aria-label", label);
      made.addEventListener("click", act);
      return made;
    };
    const tools = document.createElement("div");
    tools.className = "tools";
    tools.setAttribute("role", "group");
    tools.setAttribute("aria-label", "Size of the figure");
    const closer = button("Zoom in", "+", () => zoom(STEP));
    const farther = button("Zoom out", "−", () => zoom(1 / STEP));
    const reset = button("Reset", "Reset", () => zoom(1 / scale));
    const enlarge = button("Enlarge", "Enlarge", () => open());
    tools.append(closer, farther, reset, enlarge);
    drawing.prepend(tools);
    drawing.parentElement.classList.add("ready");

    const show = () => {
      x = Math.min(Math.max(x, left), left + width - width / scale);
      y = Math.min(Math.max(y, top), top + height - height / scale);
      svg.setAttribute("viewBox", `${x} ${y} ${width / scale} ${height / scale}`);
      paper.classList.toggle("zoomed", scale > 1);
      // A button that has the focus would lose it if it were disabled.
      closer.setAttribute("aria-disabled", String(scale >= MOST));
      for (const back of [farther, reset]) back.setAttribute("aria-disabled", String(scale <= 1));
      document.dispatchEvent(new Event("zoomed"));
    };

    // What lies under (clientX, clientY), else in the middle, stays where it is.
    const zoom = (factor, clientX, clientY) => {
      const next = Math.min(MOST, Math.max(1, scale * factor));
      const box = svg.getBoundingClientRect();
      const across = clientX === undefined ? 0.5 : (clientX - box.left) / box.width;
      const down = clientY === undefined ? 0.5 : (clientY - box.top) / box.height;
      x += across * (width / scale - width / next);
      y += down * (height / scale - height / next);
      scale = next < 1.001 ? 1 : next;
      show();
    };
    const pan = (byX, byY) => {
      const box = svg.getBoundingClientRect();
      x -= byX / box.width * width / scale;
      y -= byY / box.height * height / scale;
      show();
    };
    show();

    // The wheel alone scrolls the page; with Ctrl, as two fingers on a touchpad send it, it zooms.
    svg.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 200), event.clientX, event.clientY);
    }, { passive: false });
    drawing.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const factor = { "+": STEP, "=": STEP, "-": 1 / STEP, "0": 1 / scale }[event.key];
      if (!factor) return;
      zoom(factor);
      event.preventDefault();
    });

    svg.addEventListener("seek", ({ detail: point }) => {
      x = point.x - width / scale / 2;
      y = point.y - height / scale / 2;
      show();
    });

    const fingers = new Map();
    let moved = 0;
    svg.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, event);
      if (fingers.size === 1) {
        moved = 0;
        delete svg.dataset.dragged;
      }
    });
    svg.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const other = [...fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
      fingers.set(event.pointerId, event);
      if (!other && scale === 1) return;
      const [byX, byY] = [event.clientX - before.clientX, event.clientY - before.clientY];
      moved += Math.hypot(byX, byY);
      if (moved > SLACK) {
        svg.dataset.dragged = "yes";
        // Not sooner: a captured pointer's click does not reach what lies under it.
        svg.setPointerCapture(event.pointerId);
      }
      if (other) {
        const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY);
        zoom(
          apart(event) / Math.max(1, apart(before)),
          (event.clientX + other.clientX) / 2,
          (event.clientY + other.clientY) / 2,
        );
        pan(byX / 2, byY / 2);
      } else {
        pan(byX, byY);
      }
    });
    for (const end of ["pointerup", "pointercancel"]) {
      addEventListener(end, (event) => fingers.delete(event.pointerId));
    }

    const open = () => {
      if (drawing.closest("dialog")) {
        drawing.closest("dialog").close();
        return;
      }
      const figure = drawing.parentElement;
      const dialog = document.createElement("dialog");
      dialog.setAttribute("aria-label", `${figure.querySelector("h3").textContent}, enlarged`);
      // Its place is kept, so that the page behind stays where it is.
      const place = document.createElement("div");
      place.style.height = `${drawing.offsetHeight}px`;
      drawing.before(place);
      dialog.style.setProperty("--points", getComputedStyle(figure).getPropertyValue("--points"));
      dialog.style.setProperty("--fit", `calc((100dvh - 5rem) * ${width / height})`);
      dialog.append(drawing);
      document.body.append(dialog);
      dialog.addEventListener("close", () => {
        zoom(1 / scale);
        place.replaceWith(drawing);
        dialog.remove();
        enlarge.textContent = "Enlarge";
        // Closed with `away`, the reader went to a run's row.
        if (dialog.returnValue !== "away") enlarge.focus({ preventScroll: true });
      });
      enlarge.textContent = "Close";
      dialog.showModal();
      enlarge.focus();
    };
  };

  for (const drawing of document.querySelectorAll(".drawing")) setUp(drawing);
})();
