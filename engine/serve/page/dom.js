// Elements without markup in strings: whatever a text holds, it stays text.

const SVG = 'http://www.w3.org/2000/svg';

/** An element; `with` sets attributes, on… listeners and style properties, children are nodes or texts. */
export function make(tag, attributes = {}, ...children) {
  return furnished(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
export function draw(tag, attributes = {}, ...children) {
  return furnished(document.createElementNS(SVG, tag), attributes, children);
}

function furnished(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'style') {
      for (const [property, text] of Object.entries(value)) element.style.setProperty(property, text);
    } else if (typeof value === 'function') {
      element.addEventListener(name.slice(2), value);
    } else {
      element.setAttribute(name, value === true && !name.startsWith('aria-') ? '' : value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A share as a percentage. */
export const percent = (share, digits = 1) => (share === null || share === undefined ? '–' : (100 * share).toFixed(digits));

/** A difference of shares in points, with its sign. */
export function points(gain, digits = 1) {
  if (gain === null || gain === undefined) return '–';
  const text = (100 * Math.abs(gain)).toFixed(digits);
  return Number(text) === 0 ? text : `${gain > 0 ? '+' : '−'}${text}`;
}

/** Many of one thing in words. */
export const count = (number, one, many = `${one}s`) => `${number.toLocaleString('en-GB')} ${number === 1 ? one : many}`;
