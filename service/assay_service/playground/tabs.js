/** Switch views by tabs, with the keys of the ARIA pattern: https://www.w3.org/WAI/ARIA/apg/patterns/tabs/. */

/** Make the buttons of a tab list show the view that each controls. */
export function startTabs(list) {
  const tabs = [...list.querySelectorAll("[role=tab]")];
  const select = (chosen) => {
    for (const tab of tabs) {
      const selected = tab === chosen;
      tab.setAttribute("aria-selected", selected);
      tab.tabIndex = selected ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !selected;
    }
  };
  for (const [place, tab] of tabs.entries()) {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 };
      if (!(event.key in moves)) return;
      const next = tabs.at(moves[event.key] % tabs.length);
      event.preventDefault();
      select(next);
      next.focus();
    });
  }
}
