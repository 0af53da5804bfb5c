// Small pictures beside words; never instead of them.

import { svg, html, type TemplateResult } from 'lit';

const shape = (content: TemplateResult) =>
  html`<svg width="16" height="16" viewBox="0 0 16 16" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">${content}</svg>`;

export const icons = {
  ok: shape(svg`<circle cx="8" cy="8" r="6.5"/><path d="m5 8.2 2.1 2.1L11 6.2"/>`),
  info: shape(svg`<circle cx="8" cy="8" r="6.5"/><path d="M8 7.4v3.4M8 5.1v.1"/>`),
  warning: shape(svg`<path d="M8 1.8 15 14H1z"/><path d="M8 6.2v3.4M8 11.7v.1"/>`),
  danger: shape(svg`<path d="M5.2 1.5h5.6l3.7 3.7v5.6l-3.7 3.7H5.2l-3.7-3.7V5.2z"/><path d="m5.8 5.8 4.4 4.4m0-4.4-4.4 4.4"/>`),
  disk: shape(svg`<ellipse cx="8" cy="4" rx="6" ry="2.3"/><path d="M2 4v8c0 1.3 2.7 2.3 6 2.3s6-1 6-2.3V4M2 8c0 1.3 2.7 2.3 6 2.3S14 9.3 14 8"/>`),
  lock: shape(svg`<rect x="3" y="7" width="10" height="7" rx="1.5"/><path d="M5.2 7V5a2.8 2.8 0 0 1 5.6 0v2"/>`),
  first: shape(svg`<path d="M4 3v10M12.5 3 7 8l5.5 5"/>`),
  previous: shape(svg`<path d="M10.5 3 5 8l5.5 5"/>`),
  next: shape(svg`<path d="M5.5 3 11 8l-5.5 5"/>`),
  last: shape(svg`<path d="M12 3v10M3.5 3 9 8l-5.5 5"/>`),
  missing: shape(svg`<path d="M4 1.500h5l3.5 3.500v9.500H4z" stroke-dasharray="2.2 2"/><path d="M8.2 12.200v.1M6.8 8.300a1.5 1.5 0 1 1 2.3 1.300c-.6.3-.9.6-.9 1.1"/>`),
};

/** The mark of the program. */
export const mark = html`<svg width="30" height="30" viewBox="0 0 32 32" aria-hidden="true">
  <path fill="none" stroke="var(--accent)" stroke-width="3" stroke-linecap="round" d="M4 4c0 6 3 8 8 8h8c5 0 8-2 8-8" />
  <path fill="var(--accent)" d="M9 12h6v6H9zM17 12h6v6h-6zM9 20h6v6a3 3 0 0 1-6 0z" />
  <path fill="var(--accent)" opacity=".55" d="M17 20h6v6a3 3 0 0 1-6 0z" />
</svg>`;
