// Points of figures: what they say under pointer, finger and keyboard, and the way to their run.
"use strict";
(() => {
  const REACH = { mouse: 14, pen: 18, touch: 26 };
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  // Those who hear the page get the same words as the name of the point.
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);

  const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
  ring.setAttribute("class", "ring");
  ring.setAttribute("r", "5");

  let current = null;

  const screenPlace = (point) => {
    const matrix = point.svg.getScreenCTM();
    return { x: point.x * matrix.a + matrix.e, y: point.y * matrix.d + matrix.f };
  };

  const hide = () => {
    tip.hidden = true;
    ring.remove();
    current = null;
  };

  const show = (point, hint) => {
    current = point;
    ring.setAttribute("cx", point.x);
    ring.setAttribute("cy", point.y);
    point.svg.append(ring);
    tip.textContent = point.text;
    if (point.run) {
      const more = document.createElement("small");
      more.textContent = hint;
      tip.append(more);
    }
    // Within an open dialog only what it holds is seen.
    (point.svg.closest("dialog") ?? document.body).append(tip);
    tip.hidden = false;
    put();
  };

  const put = () => {
    const place = screenPlace(current);
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.min(Math.max(4, place.x - width / 2), document.documentElement.clientWidth - width - 4);
    const above = place.y - height - 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : place.y + 18}px`;
  };

  const isSeen = (point) => {
    const [place, box] = [screenPlace(point), point.svg.getBoundingClientRect()];
    return place.x >= box.left && place.x <= box.right && place.y >= box.top && place.y <= box.bottom;
  };

  const go = (point) => {
    const dialog = point.svg.closest("dialog");
    hide();
    if (dialog) dialog.close("away");
    if (location.hash === point.run) document.dispatchEvent(new Event("reveal"));
    else location.hash = point.run;
  };

  const setUp = (svg) => {
    // A title of the whole would cover the points' own words.
    const title = svg.querySelector(":scope > title");
    svg.setAttribute("aria-label", title.textContent);
    svg.removeAttribute("aria-labelledby");
    title.remove();
    const points = [...svg.querySelectorAll(".point")].map((element) => {
      const own = element.querySelector("title");
      const mark = element.querySelector("use");
      const text = own.textContent;
      element.setAttribute("aria-label", text);
      own.remove();
      return {
        element, svg, text,
        x: Number(mark.getAttribute("x")),
        y: Number(mark.getAttribute("y")),
        run: element.getAttribute("href"),
      };
    });
    if (!points.length) return;

    const nearest = (event) => {
      let best = null;
      let distance = REACH[event.pointerType] ?? REACH.mouse;
      for (const point of points) {
        const place = screenPlace(point);
        const away = Math.hypot(place.x - event.clientX, place.y - event.clientY);
        if (away <= distance) [best, distance] = [point, away];
      }
      return best;
    };

    // One stop for the Tab key in each figure; arrows go from point to point.
    const select = (point) => {
      for (const other of points) other.element.setAttribute("tabindex", other === point ? "0" : "-1");
    };
    select(points[0]);
    points.forEach((point, i) => {
      point.element.addEventListener("focus", () => {
        select(point);
        if (!point.element.matches(":focus-visible")) return;
        if (!isSeen(point)) svg.dispatchEvent(new CustomEvent("seek", { detail: point }));
        show(point, "Enter: its row in the table of runs");
      });
      point.element.addEventListener("blur", hide);
      point.element.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        const ends = { Home: 0, End: points.length - 1 }[event.key];
        if (step || ends !== undefined) {
          points[ends ?? (i + step + points.length) % points.length].element.focus();
          event.preventDefault();
        } else if (event.key === "Escape" && !tip.hidden) {
          hide();
          event.preventDefault();
        } else if (event.key === "Enter" && point.run) {
          go(point);
          event.preventDefault();
        }
      });
    });

    svg.addEventListener("pointermove", (event) => {
      if (event.pointerType === "touch" || event.buttons) return;
      const point = nearest(event);
      svg.style.cursor = point?.run ? "pointer" : "";
      if (point && point !== current) show(point, "Click: its row in the table of runs");
      else if (!point && current && document.activeElement !== current.element) hide();
    });
    svg.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch" && document.activeElement !== current?.element) hide();
    });
    // The first tap of a finger shows a point, the second follows it.
    svg.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      if (svg.dataset.dragged) return;
      const point = nearest(event);
      if (!point) hide();
      else if (point.run && (event.pointerType !== "touch" || point === current)) go(point);
      else show(point, "Tap again: its row in the table of runs");
    });
  };

  for (const svg of document.querySelectorAll(".paper > svg")) setUp(svg);
  const follow = () => {
    if (!current) return;
    if (document.activeElement === current.element && isSeen(current)) put();
    else hide();
  };
  for (const what of ["scroll", "resize"]) addEventListener(what, follow, { passive: true, capture: true });
  document.addEventListener("zoomed", follow);
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
})();
